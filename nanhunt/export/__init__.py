"""A trace in the forms that other tools read, a file a form; `destination` lists them."""
