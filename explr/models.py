"""The networks of the book, under the name that users import: :mod:`explr.experiments.models`."""

from explr.experiments.models import *  # noqa: F403
