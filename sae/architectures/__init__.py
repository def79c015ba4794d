"""What a dictionary is: what all share (``autoencoder.py``), one file for each gate, and what goes around every gate:
the input map (``inputs.py``), the noise level (``timed.py``) and several sites at once (``crosscoder.py``).
"""
