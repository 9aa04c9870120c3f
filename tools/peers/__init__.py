"""What `tools/bench_peers.py` is made of: other engines, each in an environment of its own, on the same shapes.

`setup` makes the environments, `*_model` write each engine's files, `workers` run inside an environment and speak JSON
lines, `turns` starts them one at a time and watches the machine, `table` reads the figures.
"""
