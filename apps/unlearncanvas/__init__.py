"""UnlearnCanvas (Zhang et al. 2024, arXiv 2402.11846) on Stable Diffusion, from folders."""
