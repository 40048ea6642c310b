"""ptacl: joint representations of ECG and cardiac MRI. The names below are the kit's face, loaded when they are first used."""
__version__ = "0.1.0"

from importlib import import_module

_HOMES = {
    "core.errors": ("PtaclError",),
    "core.presets": ("LEADS", "PHENOTYPES", "Preset", "get_preset", "paper_regression", "paper_retrieval",
                     "workshop", "laptop"),
    "data.ecg_files": ("read_ecg",),
    "data.dicom": ("read_cine",),
    "data.cohort": ("Cohort",),
    "data.ingest": ("ingest",),
    "data.pairs": ("Pairs",),
    "simulate.patients": ("simulate",),
    "signal.ecg": ("denoise", "normalize"),
    "signal.cmr": ("preprocess",),
    "signal.beats": ("detect_r_peaks",),
    "signal.segments": ("segment_beats",),
    "nets.encoders": ("ECGEncoder", "CMREncoder"),
    "nets.mae": ("MAE",),
    "nets.losses": (
        "alignment_matrix", "global_contrastive_loss", "local_contrastive_loss", "cosine_local_loss", "ptacl_loss"),
    "nets.joint": ("PTACL",),
    "nets.weights": ("from_pretrained",),
    "inference.cards": ("save_pretrained",),
    "inference.estimator": ("ECGEmbedder",),
    "train.loop": ("fit",),
    "evaluate.retrieval": ("phenotype_retrieval",),
    "evaluate.regression": ("linear_probe",),
    "evaluate.alignment": ("alignment_map", "alignment_scores"),
    "app.explorer": ("AlignmentExplorer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = list(_HOME_OF)


def __getattr__(name: str):
    "Loads what is asked for, and nothing else."
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ptacl' has no attribute {name!r}")
    thing = getattr(import_module(f"ptacl.{_HOME_OF[name]}"), name)
    globals()[name] = thing
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
