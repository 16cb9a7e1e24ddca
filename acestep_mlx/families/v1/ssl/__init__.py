"""Self-supervised alignment: what hears a song in training, and the loss that is compared with it.

`encoders` says which networks hear, `hubert` is the network, `features` makes what is cached of a song,
`projectors` and `alignment` are the side of the transformer.
"""
