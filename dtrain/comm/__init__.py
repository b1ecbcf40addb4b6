"""The all-reduce layer: flat buffers, the order of summation, memory shared by the workers of a host, barriers.

It knows buffers and ranks, not models. Its invariant: the sum over shards is a pure function of the shards' gradients,
never of who added them.
"""
