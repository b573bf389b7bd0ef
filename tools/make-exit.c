// SPDX-License-Identifier: GPL-2.0
/*
 * A loadable object for GNU make: $(make-exit N) ends make with status N.
 *
 * Make itself ends with status 2 whenever a recipe failed, but "make run" is to end
 * with the status of the command that ran in the guest.
 */
#include <stdlib.h>

int plugin_is_GPL_compatible;

void gmk_add_function(const char *name, char *(*func)(const char *, unsigned int, char **),
		      unsigned int min_args, unsigned int max_args, unsigned int flags);

static char *make_exit(const char *name, unsigned int argc, char **argv)
{
	exit(atoi(argv[0]));
}

int make_exit_setup(void)
{
	gmk_add_function("make-exit", make_exit, 1, 1, 0);
	return 1;
}
