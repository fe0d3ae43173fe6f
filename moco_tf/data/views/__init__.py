"""Random views of images: the named recipes, and the operations that they are made of."""
