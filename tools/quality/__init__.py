"""What quantizing costs the real tiny models, by method and bits (`tools/quality_table.py`)."""
