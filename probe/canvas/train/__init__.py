"""How canvas was made: ``python -m probe.canvas.train`` rebuilds, or trains further, everything in ``weights/``.

Four stages, each resumable, each a file: ``renders`` (the images), ``autoencoder``, ``judge``, ``denoiser``; ``loop``
is the training loop they share and ``export`` writes the pipeline folder.
"""
