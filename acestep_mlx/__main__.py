"""`python -m acestep_mlx` is `acestep-mlx`."""

from acestep_mlx.cli import main

main()
