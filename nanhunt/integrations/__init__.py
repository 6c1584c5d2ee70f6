"""The recorder inside training frameworks, added in each one's own way."""
