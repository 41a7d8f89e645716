"""Raw networks F, which know nothing of what a noise level means.

A network is called with scaled images [b, channels + extra_channels, h, w] and ``c_noise`` [b],
and returns [b, channels, h, w]. Its method ``encode`` takes the same and returns the activations
[b, c, y, x] of each resolution down to the bottleneck. With the attribute ``recomputes`` its
blocks keep only their inputs for the gradient (activation checkpointing). With ``call_block`` they
are called through that function, which may be a compiled one.
"""
