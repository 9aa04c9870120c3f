"""One module an engine, run as `python -m tools.peers.workers.<engine> JOB` in that engine's environment.

They import nothing but their engine, the standard library and `drive`: what they import counts as their start.
"""
