"""What an analysis hands from step to step."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from thresher.analyze.battery.study import Finding, Study
from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.evaluate import ModalityResult
from thresher.analyze.evidence import Present
from thresher.analyze.functional.words import Words
from thresher.analyze.gallery import Card
from thresher.analyze.inputs import Inputs
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import Panel
from thresher.analyze.survey.found import Surveyed

if TYPE_CHECKING:
    from thresher.analyze.single import Single


class Context(NamedTuple):
    """What is the same for every dictionary."""

    config: AnalyzeConfig
    inputs: Inputs
    panels: Mapping[str, Panel]
    presence: Mapping[str, Present]
    probed: np.ndarray | None
    """What a linear probe reads [2, concept]; None without ground truth."""
    resample: Resample
    study: Study | None
    """What the battery needs; None where too few images have a caption."""
    words: Words | None = None
    """What features are named by."""
    scratch: Path | None = None
    """Folder for codes while the analysis runs; None for memory."""


class Outcome(NamedTuple):
    """What was found about one dictionary."""

    metrics: dict[str, Any]
    modality: ModalityResult | None
    features: Any
    """Table of the features (pyarrow); None without two modalities."""
    cards: list[Card]
    concepts: list[dict[str, Any]]
    finding: Finding | None = None
    """What the battery says; None without pairs."""
    surveyed: Surveyed | None = None
    """Measures beside the verdicts."""
    functional: Mapping[str, Any] | None = None
    """What functional tests say; None without pairs or when none is asked for."""
    single: "Single | None" = None
    """What is said of features where there is one modality or too few pairs; None where the battery judged."""
    items: Mapping[str, csr_array] = MappingProxyType({})
    """The largest |z| of each feature in each item [item, feature], per modality."""
