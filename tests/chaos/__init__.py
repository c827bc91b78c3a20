"""What must not happen, tried by the thousand: kills at every file event (`kill`), damaged and hostile files (`fuzz`).

python -m tests.chaos.kill --all --out docs/results/kills.json
python -m tests.chaos.fuzz --mutants 11000 --out docs/results/mutants.json
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # tiny_sweep and its like are modules of the tests' folder
