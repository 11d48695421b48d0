"""``python -m icrl_gym`` is ``icrl-gym``."""

import sys

from icrl_gym.cli import main

if __name__ == "__main__":
    sys.exit(main())
