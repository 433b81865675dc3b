"""The arithmetic of learning that both wings use: crops, losses, moments, features, Dice."""
