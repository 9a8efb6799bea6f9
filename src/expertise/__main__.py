"""`python -m expertise` is the same as `expertise`; `torchrun -m expertise train …` works too."""

from expertise.cli.main import main

if __name__ == "__main__":
    main()
