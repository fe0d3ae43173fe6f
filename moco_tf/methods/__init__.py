"""The pre-training methods, each a keras.Model in a file of the name that --method takes."""
