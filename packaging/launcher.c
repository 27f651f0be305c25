/* The executables of the bundle: each starts CPython with the modules of its own release.
 *
 * 1. The file's name says which program to run, and its folder is where the modules are. Both are
 *    taken from /proc/self/exe, in which all symbolic links are resolved: so a running process
 *    never loads modules of another release, even if a link is switched meanwhile.
 * 2. The interpreter runs as with `python3 -I -S`: it reads no environment variables, no user's
 *    folder and no site module. All paths are set here, so that Python need not search for them.
 * 3. The CNI plugin exits without finalizing the interpreter, which saves time. This is safe: all
 *    its output went through write(2), so no buffer has to be flushed, and the kernel frees the
 *    rest.
 */
#include <Python.h>
#include <limits.h>
#include <unistd.h>

static const struct {
    const char *name, *module;
} programs[] = {MODULES};

static const char PLUGIN[] = "noctule";

static void check(PyStatus status)
{
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

static void initialize(int argc, char **argv, const char *executable, const char *folder)
{
    char lib[PATH_MAX + 8];
    PyPreConfig before;
    PyConfig config;

    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    check(Py_PreInitialize(&before));

    snprintf(lib, sizeof lib, "%s/lib", folder);
    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.write_bytecode = 0;
    config.install_signal_handlers = 1;
    config.parse_argv = 0;
    check(PyConfig_SetBytesArgv(&config, argc, argv));
    wchar_t **const folders[] = {&config.prefix, &config.exec_prefix, &config.base_prefix,
                                 &config.base_exec_prefix, &config.stdlib_dir};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        check(PyConfig_SetBytesString(&config, folders[i], lib));
    check(PyConfig_SetBytesString(&config, &config.program_name, executable));
    check(PyConfig_SetBytesString(&config, &config.executable, executable));
    check(PyConfig_SetBytesString(&config, &config.base_executable, executable));
    check(PyWideStringList_Append(&config.module_search_paths, config.stdlib_dir));
    config.module_search_paths_set = 1;
    check(Py_InitializeFromConfig(&config));
    PyConfig_Clear(&config);
}

/* Call main() of a module; return the exit status. sys.exit() within does not return. */
static int call(const char *name)
{
    PyObject *module = PyImport_ImportModule(name);
    PyObject *result = module ? PyObject_CallMethod(module, "main", NULL) : NULL;
    long status = result ? PyLong_AsLong(result) : -1;

    if (PyErr_Occurred()) {
        PyErr_Print();
        return 1;
    }
    return (int)status;
}

int main(int argc, char **argv)
{
    char executable[PATH_MAX], folder[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", executable, sizeof executable - 1);

    if (length < 0) {
        perror("noctule: /proc/self/exe");
        return 1;
    }
    executable[length] = '\0';
    strcpy(folder, executable);
    const char *program = strrchr(executable, '/') + 1;
    folder[program - executable - 1] = '\0';

    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        if (strcmp(program, programs[i].name) != 0)
            continue;
        initialize(argc, argv, executable, folder);
        if (strcmp(program, PLUGIN) != 0) {
            int status = call(programs[i].module);
            return Py_FinalizeEx() < 0 ? 120 : status;
        }
        PyGC_Disable();
        _exit(call(programs[i].module));
    }
    fprintf(stderr, "noctule: no program is called '%s'\n", program);
    return 1;
}
