"""A prompt of one's own on the Inspect page: what to draw, the job that draws it, and what to say when it fails.

The model is loaded here only, in a worker, after the button. Everything else on the page reads files.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from apps.dashboard import inspected, jobs, links, readers, shell, tiles
from apps.dashboard.address import Address, changed, widget
from apps.dashboard.inspected import Subject
from apps.dashboard.shell import Opened
from apps.errors import NotEnoughRoom
from apps.images import resize
from sae import FeatureBundle

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from apps.inspecting.drawing import Drawn, Request

_MODEL = "in_model"
"""Session key of the model's place, which is no business of a link."""
_LAST_SEED = 2**31 - 1


def job_name(opened: Opened) -> str:
    """A drawing belongs to a run and a dictionary, whose sites it records."""
    return f"inspect {opened.run.folder} {opened.name}"


def drawn(opened: Opened) -> Drawn | None:
    """What was drawn last in this session, if it is done."""
    job = jobs.current(job_name(opened))
    return None if job is None or job.state != "done" else job.result


def subject(opened: Opened, sae: Path, bundle: FeatureBundle, made: Drawn) -> Subject:
    """A drawn image as the page shows it; ``sae`` is the dictionary's folder."""

    def picture(step: int) -> tuple[np.ndarray, str]:
        found = made.prediction(step)
        return (made.image, "The image") if found is None else (found, f"The image as predicted at step {step}")

    asked = made.request
    return Subject(
        name="own prompt",
        prompt=asked.prompt,
        seed=asked.seed,
        about=f"guidance {asked.guidance:g}",
        branches=made.branches,
        codes=lambda branch: readers.own_codes(opened.run, sae, made, bundle.steps, branch),
        picture=picture,
        sample=None,
        guidance=asked.guidance,
    )


def form(opened: Opened, sae: Path) -> None:
    """Prompt, seed, guidance, model, the button, and the state of the drawing. ``sae`` says which sites to record."""
    store = readers.opened_store(opened.run)
    if "steps" not in store.plan:
        st.info(
            "This run recorded real images at chosen noise levels, so its model cannot be asked for another one here. "
            "Collect from prompts with `denoscope collect --prompts`.",
            icon=":material/image:",
        )
        return
    name = job_name(opened)
    job = jobs.current(name)
    request = _request(store)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Draw", type="primary", icon=":material/brush:", key="in_draw", disabled=job is not None and job.alive
        ):
            _start(opened, sae, request)
            st.rerun()
        st.caption(
            f"Loads the model and draws one image in {store.plan['steps']} steps, recorded as the run's samples were. "
            "It takes as long as the model needs; the page stays usable."
        )
    jobs.watch(name)
    if job is not None and job.state == "cancelled":
        st.caption("The drawing was cancelled.")
    if job is not None and job.state == "failed" and job.error is not None:
        _failed(opened, sae, request, job.error)


def _request(store: ActivationStore) -> Request:
    """What the reader asks for; the address follows."""
    from apps.inspecting.drawing import Request

    address = Address()
    made = store.plan
    prompt = address.parsed(
        links.PROMPT,
        what="prompt",
        parse=inspected.prompt_text,
        default=str(store.samples.column("prompt")[0].as_py())[:200] or "a picture",
    )
    seed = address.whole_number(links.SEED, what="seed", low=0, high=_LAST_SEED, default=0)
    guidance = address.parsed(
        links.GUIDANCE, what="guidance", parse=inspected.guidance_scale, default=f"{float(made.get('guidance', 1.0)):g}"
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input("Prompt", key=widget(links.PROMPT), on_change=changed, args=(links.PROMPT,), max_chars=500)
        st.number_input("Seed", 0, _LAST_SEED, key=widget(links.SEED), on_change=changed, args=(links.SEED,), width=130)
        st.text_input(
            "Guidance",
            key=widget(links.GUIDANCE),
            on_change=changed,
            args=(links.GUIDANCE,),
            width=100,
            help="Guidance scale; up to 1 the unconditional branch is not computed, which halves time and memory.",
        )
        model = st.text_input(
            "Model",
            value=str(made.get("model", "")),
            key=_MODEL,
            width=220,
            help="canvas, the folder of the run's model, or a hub id whose files are on this machine.",
        )
    address.save()
    shell.tell(address)
    return Request(prompt, seed, guidance, model.strip(), tuple(store.spec.branches))


def _start(opened: Opened, sae: Path, request: Request) -> None:
    """Begins the drawing. What a later rerun of the page does cannot disturb it."""
    store, sites = readers.opened_store(opened.run), readers.sites_of(sae)

    def work(job: jobs.Job[Any]) -> Drawn:
        from apps.inspecting.drawing import draw

        def preview(step: int, image: np.ndarray) -> None:
            job.preview = tiles.jpeg(resize(image, 96))

        job.step(0, 0, "loading libraries and model")
        return draw(
            store,
            sites,
            request,
            on_step=lambda step, steps: job.step(step, steps, f"step {step + 1} of {steps}"),
            on_preview=preview,
        )

    jobs.start(job_name(opened), f"Drawing {links.quoted(request.prompt)}", work)


def _failed(opened: Opened, sae: Path, request: Request, error: Exception) -> None:
    """One line that says why, what to do, and a report to copy."""
    with st.container(border=True):
        st.markdown(":material/error: **The image could not be drawn.**")
        st.code(" ".join(str(error).split()) or type(error).__name__, language=None, wrap_lines=True)
        if isinstance(error, NotEnoughRoom):
            with st.container(horizontal=True):
                if len(request.computed) > 1 and st.button("Draw and keep branch cond only", key="in_cheaper_branch"):
                    _start(opened, sae, replace(request, branches=("cond",)))
                    st.rerun()
                if request.guidance > 1.0 and st.button("Draw with guidance 1", key="in_cheaper_guidance"):
                    _start(opened, sae, replace(request, guidance=1.0))
                    st.rerun()
        with st.expander("Report", icon=":material/content_copy:"):
            known = {"python": platform.python_version()} | {n: version(n) for n in ("streamlit", "torch", "numpy")}
            lines = [f"{type(error).__name__}: {error}", f"request {request}", f"run {opened.run.name} {opened.name}"]
            st.code("\n".join([*lines, *(f"{key} {value}" for key, value in known.items())]), language=None)
