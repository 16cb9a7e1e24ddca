"""`acestep-mlx`, and `python -m acestep_mlx`."""


def run() -> None:
    """The command line; a Ctrl-C that comes while it is still being loaded ends without a traceback too."""
    try:
        from .cli import main
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    main()


if __name__ == "__main__":
    run()
