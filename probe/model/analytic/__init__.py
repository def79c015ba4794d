"""Closed-form denoisers: distributions whose noise can be predicted exactly, behind the interface of any model.

They are the ground truth of every estimator in ``probe``, and of yours: an ``EpsModel`` is all that an estimator sees.

    Gaussian            covariance of any rank, so also a linear manifold       log-density, entropy
    GaussianMixture     conditioned on its labels                               log-density, label posterior
    LowRankMixture      a mixture of low-rank Gaussians (MoLRG)                 the planted subspaces
    Sphere              uniform on a sphere inside a higher space               intrinsic dimension

All work in float64, are differentiable any number of times, and know any finite level. Each has ``sample`` and
``covariance_given``, the exact posterior covariance Cov(x | z), where it has a closed form.
"""

from probe.model.analytic.gaussian import Gaussian
from probe.model.analytic.low_rank import LowRankMixture
from probe.model.analytic.mixture import GaussianMixture
from probe.model.analytic.sphere import Sphere

__all__ = ["Gaussian", "GaussianMixture", "LowRankMixture", "Sphere"]
