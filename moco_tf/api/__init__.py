"""What the programs do, in Python; `import moco_tf` gives these names as they are needed.

    recipe = moco_tf.recipe("demo", epochs=1)                  # flags/pretrain/demo.cfg, one flag changed
    metrics = moco_tf.train(recipe, workdir="runs/first")      # as python -m moco_tf.pretrain
    encoder = moco_tf.load("runs/first")                       # or what else --load takes, a .pth.tar for instance
    features = encoder.embed(images)                           # uint8 NxHxWx3 -> NxD float32
    encoder.knn(dataset="fashion_mnist", k=200)["top1"]        # as python -m moco_tf.knn
    encoder.linear_probe("demo")["top1"]                       # as python -m moco_tf.lincls
    encoder.export("encoder/")                                 # as python -m moco_tf.export

Keywords are the programs' flags. With Keras' own loop instead of the program's:

    training = moco_tf.Training(recipe)
    training.fit(callbacks=[...])                              # training.method is a keras.Model
    encoder = training.save("runs/second")

Bad input raises moco_tf.UserError, whose message says how to mend it.
"""
