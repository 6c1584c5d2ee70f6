"""Small language models of today's families, and what a recipe needs besides: text, loss, schedule, a training loop."""
