"""Names of the user attributes that a study and its trials keep in Optuna's storage."""

# Of a study
RUN_ID = "run_id"  # its MLflow run; of a trial: the trial's
DRIVER_PREFIX = "driver "  # followed by its id: one of its drivers
SEARCHED_SECONDS = "searched_seconds"  # by all of its drivers, one after the other
GPUS = "gpus"  # whether its cluster has had some
FINAL = "final"  # the configurations that were retrained, and the results of their trainings
WINNER = "winner"  # trial, settings and figures of the best of them
ENSEMBLE = "ensemble"  # run, networks and metrics of the last ensemble of finalists
TESTED = "tested"  # ids of the runs whose models were evaluated on the test set, in order
NOTE = "note"  # digests of the notes that were written for optuna-dashboard
ARCHITECTURES = "architectures"  # milliseconds for one image by network, measured before the first training of each
LATENCIES = "latencies"  # milliseconds by trial number, as text since JSON has no other keys
DEFINITION = "definition"  # images, metrics and fixed settings of its search, for later ones that start from it
STARTED_FROM = "started_from"  # sources whose trials it holds, as `start_from` names them
BUDGET_SAID = "budget_said"  # the budget that was said to be nearly spent
FINISHER = "finisher"  # the driver that trains the finalists, where several share the study

# Of a trial
DUPLICATE_OF = "duplicate_of"  # number of the earlier trial with the same configuration
CONTINUES = "continues"  # number of the trial that it goes on with, from its checkpoint
ROOT = "root"  # number of the first trial of those that continue each other, or try its configuration again
IMPORTED_FROM = "imported_from"  # study and number of a trial that was not trained by this search
INFEASIBLE = "infeasible"  # why the configuration does not fit the images or the limits
ATTEMPT = "attempt"  # counted from 1; more after a crash
NODE_LOSSES = "node_losses"  # how many nodes were lost under the configuration
DRIVER = "driver"  # id of the driver that trains it, where several share the study
ABANDONED = "abandoned"  # whether that driver will not try the configuration again
OUTCOME = "outcome"
EPOCHS = "epochs"  # of its training
RESUMED_AFTER = "resumed_after"  # how many of them it has taken over from a checkpoint
FIGURES = ("parameters", "seconds", EPOCHS, RESUMED_AFTER, "latency_ms")

# The constraint of a trial: 0 where its configuration can be trained here, 1 where it cannot
TRAINABLE = "trainable"
