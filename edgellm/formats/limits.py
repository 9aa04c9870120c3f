"""Every bound on what a file may claim, in one table.

Each is checked before the thing it bounds is allocated. They stand well above what real checkpoints hold and well
below what hurts: a hostile header of any content is refused within a second and 200 MB.
"""

from __future__ import annotations

MAX_HEADER_BYTES = 16 << 20  # the largest published headers are below 3 MB
MAX_TENSORS = 200_000  # DeepSeek-V3, 256 experts a layer, has 91,991
MAX_RANK = 8
MAX_DIMENSION = 2**31 - 1
MAX_NAME_CHARS = 512
MAX_METADATA_ENTRIES = 4096

MAX_SHARDS = 1024
MAX_INDEX_BYTES = 16 << 20
MAX_OPEN_SHARDS = 4  # file descriptors held at once; a process may be allowed few

MAX_BUNDLED_FILES = 64
MAX_BUNDLED_BYTES = 128 << 20  # of all side files of a bundle together

MAX_GROUP_SIZE = 1 << 20
MAX_OVERRIDES = 200_000  # per-module settings by name: one for each expert of a large mixture
MAX_PATTERNS = 1024  # per-module settings by regular expression
MAX_PATTERN_CHARS = 512
MAX_PATTERN_REPEATS = 5  # `*`, `+`, `{}` in one expression: matching time grows with length ** repeats
MAX_MATCHED_CHARS = 128  # of a module's name
MAX_MATCH_SECONDS = 1.0  # all expressions against all modules
