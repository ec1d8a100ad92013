"""`python -m planners` is `plan`."""

from planners.cli import main

if __name__ == "__main__":
    main(prog_name="plan")
