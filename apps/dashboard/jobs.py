"""Work that takes longer than a page may wait: a thread, a cancel event, and a fragment that looks in on it.

A thread may not touch Streamlit and a page may not wait for a thread, so a job only changes its own attributes, and the
page reads them four times a second. The work calls ``job.step`` whenever it can be ended; that is where a cancelled job
stops. One job computes at a time in the whole server, because two models at once may not fit; the others wait, and say
so. A page keeps its job in the session, so a reader who goes to another page and comes back finds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import streamlit as st

T = TypeVar("T")
_computing = threading.Lock()
_LOOK = 0.25  # seconds between two looks
_WAIT = 0.05  # seconds in which a waiting job hears that it was cancelled


class Cancelled(Exception):
    """Ends the work of a job that was cancelled. Raised by ``Job.step`` only."""


class Job(Generic[T]):
    """One piece of work in its own thread.

    Attributes:
        title: what it does, for the reader.
        state: waiting, running, done, failed or cancelled.
        done, total: progress; total is 0 while it is unknown.
        note: what it is doing now.
        preview: a picture file of what is there so far, or None.
        result: what the work returned, once it is done.
        error: what it raised, once it failed.
    """

    def __init__(self, title: str, work: Callable[[Job[T]], T]) -> None:
        self.title = title
        self.state = "waiting"
        self.done, self.total, self.note = 0, 0, ""
        self.preview: bytes | None = None
        self.result: T | None = None
        self.error: Exception | None = None
        self._work = work
        self._stop = threading.Event()
        # A daemon: closing the server does not wait for a generation.
        self._thread = threading.Thread(target=self._run, name=title, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it is waiting or running."""
        return self.state in ("waiting", "running")

    def start(self) -> Job[T]:
        """Begins, or waits for the job that computes now."""
        self._thread.start()
        return self

    def cancel(self) -> None:
        """Asks it to end at its next step."""
        self._stop.set()

    def join(self, seconds: float | None = None) -> None:
        """Waits for its end."""
        self._thread.join(seconds)

    def step(self, done: int, total: int, note: str = "") -> None:
        """Called by the work: how far it is.

        Raises:
            Cancelled: somebody asked for the end.
        """
        if self._stop.is_set():
            raise Cancelled
        self.done, self.total, self.note = done, total, note

    def _run(self) -> None:
        while not _computing.acquire(timeout=_WAIT):
            if self._stop.is_set():
                self.state = "cancelled"
                return
        try:
            self.state = "running"
            self.step(0, 0)
            self.result = self._work(self)
            self.state = "done"
        except Cancelled:
            self.state = "cancelled"
        except Exception as error:  # no caller is left to hear of it: the page shows it
            self.error, self.state = error, "failed"
        finally:
            _computing.release()


def start(key: str, title: str, work: Callable[[Job[Any]], Any]) -> Job[Any]:
    """Starts a job of this session under a name; an earlier one of that name is cancelled."""
    earlier = current(key)
    if earlier is not None:
        earlier.cancel()
    st.session_state[_place(key)] = job = Job(title, work).start()
    return job


def current(key: str) -> Job[Any] | None:
    """The job of this session under a name, whatever its state."""
    return st.session_state.get(_place(key))


def watch(key: str) -> None:
    """Draws the progress of a job and a button that ends it, until it has ended; then the page is drawn again."""
    job = current(key)
    if job is None or not job.alive:
        return

    @st.fragment(run_every=_LOOK)
    def look() -> None:
        if not job.alive:
            st.rerun()
        share = job.done / job.total if job.total else 0.0
        text = job.note or ("waiting for another drawing" if job.state == "waiting" else "starting")
        with st.container(horizontal=True, vertical_alignment="center", border=True):
            if job.preview is not None:
                st.image(job.preview, width=96, alt="What is there so far")
            st.progress(min(share, 1.0), text=f"{job.title}: {text}")
            st.button("Cancel", icon=":material/stop_circle:", key=f"cancel_{key}", on_click=job.cancel)

    look()


def _place(key: str) -> str:
    return f"job_{key}"
