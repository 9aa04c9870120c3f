"""The embedded guide model: its conversations, tokenizer, training and evaluation (models/guide/card.md)."""
