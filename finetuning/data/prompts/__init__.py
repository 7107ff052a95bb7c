"""How a sample is written for the model: chat templates, prompt templates, and which tokens are trained."""
