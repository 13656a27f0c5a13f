"""Models: a native decoder that reads and writes the Hugging Face layout, scalar heads, fingerprints."""

import os

# oneDNN computes bf16 products on a CPU and keeps what it compiles for each shape, as does torch's layer over it: 1,024
# of them, two thirds of a megabyte each. Rows of different lengths make new shapes in every pass: 400 took 250 MB, and
# make 17 this way. A layer's products, forward and backward, are 12 shapes, and one compiles in half a millisecond.
# Both are read at the first product of the process.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "32")
