"""What orchestration, tracking and versioning cost a stage and a run."""
