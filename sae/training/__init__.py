"""How dictionaries are trained: ``train.py`` runs, ``trainee.py`` is one dictionary in training, ``division.py`` and
``processes.py`` share the work among processes.
"""
