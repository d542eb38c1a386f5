"""This project's reward-model training against TRL's RewardTrainer."""
