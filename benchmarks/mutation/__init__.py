"""Whether the tests of `maths` notice when it says something else."""
