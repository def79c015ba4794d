"""Probes and interventions for diffusion models, with worlds that have known factors."""
