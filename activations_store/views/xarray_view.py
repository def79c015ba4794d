"""A store as labelled arrays of xarray, read when values are asked for.

Nothing is copied: a variable knows its site, and indexing it reads only the chunks that are needed, checked like any
other read. Maps that were never recorded are NaN, xarray's missing value; samples that are not committed raise
`MissingSamples` when they are computed. xarray is an optional dependency.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from activations_store.errors import MissingLibrary, explain

if TYPE_CHECKING:
    import xarray as xr

    from activations_store.store import ActivationStore
    from activations_store.views.site_view import SiteView

DIMENSIONS = ("sample", "step", "branch", "token", "channel")


def site_to_xarray(store: "ActivationStore", view: "SiteView") -> "xr.DataArray":
    """One site.

    Args:
        store: the store that the view belongs to.
        view: the site, or a part of it.

    Returns:
        A lazy DataArray (sample, step, branch, token, channel), float16 or float32, named after the site.
        Coordinates: sample, step, branch, token (dimensions); t, log_snr (step); prompt, seed and every other column
        of the sample table, such as label_object (sample); y, x (token) when tokens are spatial.

    Raises:
        MissingLibrary: xarray is not installed.
    """
    coordinates = {**_shared_coordinates(store, view), **_token_coordinates(view, "token")}
    return _variable(view, DIMENSIONS, coordinates)


def store_to_xarray(store: "ActivationStore") -> "xr.Dataset":
    """All sites.

    Returns:
        A lazy Dataset with a variable a site. Its dimensions are (sample, step, branch, token, channel) when all
        sites have equal tokens and channels. Otherwise token and channel carry their size in their name
        (`token_256`, `channel_1280`), so that sites of one shape share them. Coordinates as for one site.

    Raises:
        MissingLibrary: xarray is not installed.
    """
    xarray = _xarray()
    views = {name: store.site(name) for name in store.sites}
    alike = len({view.shape[3:] for view in views.values()}) == 1
    first = next(iter(views.values()))
    coordinates, variables = _shared_coordinates(store, first), {}
    for name, view in views.items():
        token, channel = DIMENSIONS[3:] if alike else (f"token_{view.shape[3]}", f"channel_{view.shape[4]}")
        dimensions = (*DIMENSIONS[:3], token, channel)
        variables[name] = _variable(view, dimensions, {}).variable
        if token not in coordinates:
            coordinates[token] = (token, view.tokens)
    attributes = {"spec": store.hashes["spec"], "plan": store.hashes["plan"], "path": str(store.place)}
    return xarray.Dataset(variables, coords=coordinates, attrs=attributes)


def _variable(view: "SiteView", dimensions: tuple[str, ...], coordinates: dict[str, Any]) -> "xr.DataArray":
    xarray = _xarray()
    from xarray.core import indexing

    class SiteArray(xarray.backends.BackendArray):
        """What xarray asks for values: positions in, numpy array out."""

        shape = view.shape
        dtype = view.dtype

        def __getitem__(self, key: Any) -> Any:
            support = indexing.IndexingSupport.OUTER
            return indexing.explicit_indexing_adapter(key, self.shape, support, _reader(view))

    data = indexing.LazilyIndexedArray(SiteArray())
    attributes = {"site": view.spec.name, "stored_dtype": view.spec.dtype}
    variable = xarray.Variable(dimensions, data, attributes)
    return xarray.DataArray(variable, coords=coordinates, name=view.spec.name)


def _reader(view: "SiteView") -> Any:
    def read(key: tuple[Any, ...]) -> np.ndarray:
        """Values at one position, slice or array a dimension; a dimension chosen by a number is dropped."""
        at = [np.atleast_1d(np.arange(n)[k]) for k, n in zip(key, view.shape, strict=True)]
        shape = tuple(len(a) for a, k in zip(at, key, strict=True) if not np.isscalar(k))
        if not all(map(len, at)):
            return np.empty(shape, view.dtype)
        x = view.sel(at[0], at[1], at[2].tolist(), at[3]).read(missing="nan")
        whole = len(at[4]) == view.shape[4] and bool((np.diff(at[4]) == 1).all())
        return (x if whole else x[..., at[4]]).reshape(shape)

    return read


def _shared_coordinates(store: "ActivationStore", view: "SiteView") -> dict[str, Any]:
    spec, samples, steps = store.spec, view.samples, view.steps
    coordinates: dict[str, Any] = {
        "sample": ("sample", samples),
        "step": ("step", steps),
        "branch": ("branch", np.array(view.branches)),
        "t": ("step", np.array(spec.timesteps)[steps]),
        "log_snr": ("step", np.array(spec.log_snr)[steps]),
    }
    table = store.samples
    for name in table.column_names:
        if name not in coordinates:
            coordinates[name] = ("sample", table.column(name).to_numpy()[samples])
    return coordinates


def _token_coordinates(view: "SiteView", dimension: str) -> dict[str, Any]:
    tokens = view.tokens
    coordinates: dict[str, Any] = {dimension: (dimension, tokens)}
    if view.spec.grid is not None:
        y, x = np.divmod(tokens, view.spec.grid[1])
        coordinates |= {"y": (dimension, y), "x": (dimension, x)}
    return coordinates


def _xarray() -> Any:
    try:
        import xarray
    except ImportError as error:
        raise MissingLibrary(
            explain("A store as xarray needs xarray", found=str(error), next_step="pip install xarray")
        ) from error
    return xarray
