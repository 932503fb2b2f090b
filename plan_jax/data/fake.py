"""Made-up small raw folders in the published layouts, quirks included: `python -m plan_jax fake NAME --out DIR`."""

import difflib
import importlib
from pathlib import Path

from plan_jax.errors import InputError

# data set -> module and function; imported when it is written
FAKES = {
    "chexpert": ("plan_jax.data.fake_labels", "fake_chexpert_5x200"),  # with a list of its own: it is too small to draw
    "chexpert_5x200": ("plan_jax.data.fake_labels", "fake_chexpert_5x200"),
    "covid_cxr": ("plan_jax.data.fake_covid_cxr", "fake_covid_cxr"),
    "covidx": ("plan_jax.data.fake_labels", "fake_covidx"),
    "nih_cxr14": ("plan_jax.data.fake_labels", "fake_nih_cxr14"),
    "rsna": ("plan_jax.data.fake_boxes", "fake_rsna"),
    "siim": ("plan_jax.data.fake_boxes", "fake_siim"),
    "object_cxr": ("plan_jax.data.fake_boxes", "fake_object_cxr"),
    "mimic_cxr": ("plan_jax.data.fake_reports", "fake_mimic_cxr"),
    "ms_cxr": ("plan_jax.data.fake_reports", "fake_ms_cxr"),
    "openi": ("plan_jax.data.fake_openi", "fake_openi"),
}


def fake(name: str, *, out: Path, seed: int = 0) -> None:
    """Writes a raw folder of made-up films for data set `name`; the same seed gives the same bytes.

    Raises:
        InputError: unknown name, or `out` is there already and not empty: a real data set must not be mixed up.
    """
    if name not in FAKES:
        near = difflib.get_close_matches(name, FAKES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(FAKES)}"
        raise InputError(f"data set must be one of {', '.join(FAKES)}, got {name!r}; {hint}")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--out must be a new or an empty folder, got {out}; give another")
        out.mkdir(parents=True, exist_ok=True)
        module, function = FAKES[name]
        getattr(importlib.import_module(module), function)(out, seed=seed)
    except OSError as error:
        raise InputError(f"--out must be a folder that can be written, got {out}: {error.strerror}") from error
