"""The module for VERL_USE_EXTERNAL_MODULES: verl imports it in each of its processes, and uses UloRL's loss then."""

from ulorl.adapters.verl import install

install()
