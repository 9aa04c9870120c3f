"""Lies beside `__init__.py`, so that every test can import `tests.fakes` whichever folder is run."""
