"""Distillation: a small student repaired against its teacher, without an autograd framework.

`ops` are the forwards and backwards by hand, `network` walks a program with them. Above: `reduce` makes the student,
`heal` repairs it block by block on hidden states, `train` by the teacher's logits, `run` does all of it.
"""
