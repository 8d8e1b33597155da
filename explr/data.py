"""The images that the book trains on, under the name that users import: this module is :mod:`explr.experiments.data`."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from explr.experiments.data import *  # noqa: F403
else:
    from explr.experiments import data

    sys.modules[__name__] = data
