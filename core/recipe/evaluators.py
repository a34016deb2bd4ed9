"""The entries of a config's `evals`: a dataclass for each type of evaluator."""

from typing import Annotated, Any

from core.recipe.evaluators_image_text import Contrastive, Retrieval, Zeroshot
from core.recipe.evaluators_predictions import Agreement, Classification, Mean, Save, Sharpness
from core.recipe.evaluators_transfer import Fewshot, Knn
from core.recipe.types import OneOf

# By the name that `config.evals.NAME.type` gives; those that published configs have come after ours.
EVALUATORS: dict[str, type] = {
  "agreement": Agreement,
  "classification": Classification,
  "contrastive": Contrastive,
  "proj.image_text.contrastive": Contrastive,
  "fewshot": Fewshot,
  "fewshot_lsr": Fewshot,
  "knn": Knn,
  "mean": Mean,
  "retrieval": Retrieval,
  "proj.image_text.retrieval": Retrieval,
  "save": Save,
  "sharpness": Sharpness,
  "zeroshot": Zeroshot,
  "proj.image_text.discriminative_classifier": Zeroshot,
}

Evaluator = Annotated[Any, OneOf("type", EVALUATORS, default="classification")]
