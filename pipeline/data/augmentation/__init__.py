"""Random changes of training images (b, h, w, c) and, for mixup and cutmix, of their labels (b, classes).

Every augmentation is a stateless function of the images and a seed (2,): no tf.random.Generator has a part in it, so
that any batch can be made again alone.
"""
