"""The Triton kernels. The KV cache of one layer is [blocks, kv_heads, 2, block_size, head_dim]: the keys of one
head in one block lie together, its values right behind them, so that a tile of one head reads long runs."""
