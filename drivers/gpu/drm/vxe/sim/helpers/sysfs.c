// SPDX-License-Identifier: GPL-2.0

#include <linux/kobject.h>
#include <linux/sysfs.h>

/*
 * Creates the file @name of @kobj. Keeps @attr until the file is removed. All files have one lockdep
 * class, since their attributes are not static: none of their functions removes another file.
 */
int vxesim_sysfs_create_file(struct kobject *kobj, struct kobj_attribute *attr, const char *name,
			   umode_t mode,
			   ssize_t (*show)(struct kobject *kobj, struct kobj_attribute *attr,
					   char *buf),
			   ssize_t (*store)(struct kobject *kobj, struct kobj_attribute *attr,
					    const char *buf, size_t count))
{
	sysfs_attr_init(&attr->attr);
	attr->attr.name = name;
	attr->attr.mode = mode;
	attr->show = show;
	attr->store = store;
	return sysfs_create_file(kobj, &attr->attr);
}

/* Writes a number and a newline to the buffer of a file that is shown. */
int vxesim_sysfs_emit_number(char *buf, unsigned int value)
{
	return sysfs_emit(buf, "%u\n", value);
}
