"""The mathematics of alignment as pure functions over tensors: one equation, one function; torch and nothing else.

A loss returns one value per token, per pair or per row. The reduction is a step of its own (`masking.masked_mean` with
its denominator in sight), so splitting a batch into micro-batches or ranks cannot change the gradient. A mask is a
boolean tensor, True where a token counts.
"""
