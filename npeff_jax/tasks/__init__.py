"""Models and examples to try things on, and readers of real data sets."""

from npeff_jax.tasks import presets as presets
from npeff_jax.tasks._dataset import Dataset as Dataset
from npeff_jax.tasks._digits import Digits as Digits
from npeff_jax.tasks._digits import digits as digits
from npeff_jax.tasks._image_folder import read_image_folder as read_image_folder
from npeff_jax.tasks._labels import LabelCheck as LabelCheck
from npeff_jax.tasks._labels import check_labels as check_labels
from npeff_jax.tasks._nli import Inference as Inference
from npeff_jax.tasks._nli import inference as inference
from npeff_jax.tasks._nli_language import PAPER_SIZED_LANGUAGE as PAPER_SIZED_LANGUAGE
from npeff_jax.tasks._nli_language import SMALL_LANGUAGE as SMALL_LANGUAGE
from npeff_jax.tasks._planted import Planted as Planted
from npeff_jax.tasks._planted import pefs_of_rows as pefs_of_rows
from npeff_jax.tasks._planted import planted as planted
from npeff_jax.tasks._planted import planted_diagonal as planted_diagonal
from npeff_jax.tasks._planted_fishers import PlantedFishers as PlantedFishers
from npeff_jax.tasks._planted_fishers import planted_fishers as planted_fishers
from npeff_jax.tasks._shortcut import Shortcut as Shortcut
from npeff_jax.tasks._shortcut import shortcut as shortcut
from npeff_jax.tasks._tables import Columns as Columns
from npeff_jax.tasks._tables import read_qqp as read_qqp
from npeff_jax.tasks._tables import read_snli as read_snli
from npeff_jax.tasks._tables import read_table as read_table
