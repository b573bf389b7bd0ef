// SPDX-License-Identifier: GPL-2.0

#include <linux/debugfs.h>

/* These are inline stubs without CONFIG_DEBUG_FS. */
struct dentry *vxesim_debugfs_create_dir(const char *name, struct dentry *parent)
{
	return debugfs_create_dir(name, parent);
}

struct dentry *vxesim_debugfs_create_file(const char *name, umode_t mode, struct dentry *parent,
					void *data, const struct file_operations *fops)
{
	return debugfs_create_file(name, mode, parent, data, fops);
}

struct dentry *vxesim_debugfs_create_symlink(const char *name, struct dentry *parent,
					   const char *target)
{
	return debugfs_create_symlink(name, parent, target);
}

void vxesim_debugfs_remove(struct dentry *dentry)
{
	debugfs_remove(dentry);
}
